"""The numbers of the library at a fixed state, recorded so that a refactoring can be compared with them bit for bit.

    python -m benchmarks.recorded write FILE.npz      every group of numbers, and the option names beside it, FILE.json
    python -m benchmarks.recorded compare FILE.npz    the same numbers now, compared; exit status 1 if any differs

Objects are described by the plain data of version 0.1, `{"class_path": …, "init_args": …}`, with its class paths and
argument names: a later version must still read them. All imports from the library are in `library.py`.

`benchmarks/recorded/0.2.npz` was written at commit 955c7f8 on one thread of an x86-64 CPU with torch from
`constraints.txt`. Another type of CPU or another version of torch orders sums differently, and the last digits of
initial weights are others: there, write a recording of the old version first and compare with that one.

How far rounding is carried, measured with every sum in another order (ATEN_CPU_CAPABILITY=default): formulas 2e-15,
samples of the exact problems mostly below 1e-13, nine of some 4,200 between 1e-12 and 7e-12.
"""
