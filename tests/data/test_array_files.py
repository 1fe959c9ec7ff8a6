"""Files of numpy as people write them: in any order, of any type, and larger than the memory."""

import numpy as np
import pytest
import torch

from openedm.data import Arrays, InMemory, array_files, memory
from openedm.ground.tensors import as_tensor

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (6, 5, 7, 3), dtype=np.uint8)


def saved(folder, x, name="x.npy"):
    np.save(folder / name, x)
    return str(folder / name)


@pytest.fixture
def everything_is_large(monkeypatch):
    monkeypatch.setattr(array_files, "MAX_COPIED", 0)
    monkeypatch.setattr(memory, "MAX_COPIED", 0)
    monkeypatch.setattr(memory, "_PART", 40)


def forms():
    """Arrays with the same numbers in many forms, and the options that read them alike."""
    floats = RNG.normal(size=(6, 3, 5, 7)).astype(np.float32)
    whole = RNG.integers(-100, 100, (6, 3, 5, 7))
    for order in ("C", "F"):
        yield f"bytes {order}", np.asarray(PIXELS, order=order), {}
        yield f"floats {order}", np.asarray(floats, order=order), {}
    yield "swapped", floats.astype(">f4"), {}
    yield "doubles", floats.astype(np.float64), {}
    yield "halves", floats.astype(np.float16), {}
    yield "long", floats.astype(np.longdouble), {}
    for kind in ("i1", ">i2", "i4", ">i8"):
        yield kind, whole.astype(kind), {"range": (-100, 100)}
    for kind in (">u2", ">u4", "u8"):
        yield kind, (whole + 100).astype(kind), {"range": (0, 200)}
    yield "bits", PIXELS > 99, {}
    yield "last", np.moveaxis(floats, 1, -1), {"layout": "channels_last"}


@pytest.mark.parametrize(
    ("name", "x", "options"), list(forms()), ids=lambda value: value if isinstance(value, str) else ""
)
def test_large_arrays_give_the_same_numbers_as_small_ones(tmp_path, monkeypatch, name, x, options):
    path = saved(tmp_path, x)
    wanted = Arrays(path, **options).load()
    for module in (array_files, memory):
        monkeypatch.setattr(module, "MAX_COPIED", 0)
    monkeypatch.setattr(memory, "_PART", 40)
    found = Arrays(path, **options).load()
    assert torch.equal(found.fetch([4, 1, 5])[0], wanted.fetch([4, 1, 5])[0])
    assert (found.event_shape, found.stored, found.kind) == (wanted.event_shape, wanted.stored, wanted.kind)
    events = np.moveaxis(x, -1, 1) if x.shape[-1] == 3 else x
    low, high = options.get("range", (0, 255) if x.dtype == np.uint8 else (0, 1) if x.dtype == bool else (-1, 1))
    numbers = events[[4, 1, 5]].astype(np.float64) * 2 / (high - low) - (high + low) / (high - low)
    np.testing.assert_allclose(wanted.fetch([4, 1, 5])[0], numbers, atol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "uint8", "uint16"])
def test_large_files_stay_on_disk_where_their_numbers_are_used_as_they_are(tmp_path, everything_is_large, dtype):
    x = PIXELS / np.float32(255) - 0.5 if dtype == "float32" else PIXELS.astype(dtype)
    path = saved(tmp_path, x * np.uint16(200) if dtype == "uint16" else x)
    data = Arrays(path, layout="channels_last").load()
    mapped = np.load(path, mmap_mode="r+")
    before = float(data.fetch([0])[0].sum())
    mapped[0] = 0
    mapped.flush()
    assert float(data.fetch([0])[0].sum()) != before


def test_memory_is_compared_with_what_is_free_before_an_array_is_read(tmp_path, everything_is_large, monkeypatch):
    monkeypatch.setattr(array_files, "available_memory", lambda: 100)
    np.savez(tmp_path / "x.npz", x=PIXELS, y=np.zeros(3))
    with pytest.raises(ValueError, match=r"array 'x' needs .* GiB of memory, and .* GiB are free: save it as a .npy"):
        Arrays(str(tmp_path / "x.npz"), key="x").load()
    for name, x, options in (
        ("f.npy", np.asfortranarray(PIXELS), {}),
        ("d.npy", PIXELS.transpose(0, 3, 1, 2) / 255 - 0.5, {}),
        ("i.npy", PIXELS.astype(np.int32), {"range": (0, 255), "layout": "channels_last"}),
    ):
        with pytest.raises(ValueError, match=r"needs .* GiB are free"):
            Arrays(saved(tmp_path, x, name), **options).load()


def test_labels_that_are_names_are_the_names_of_the_classes(tmp_path):
    np.savez(tmp_path / "x.npz", x=PIXELS, labels=np.array(["dog", "cat", "dog", "eel", "cat", "cat"]))
    data = Arrays(str(tmp_path / "x.npz")).load()
    assert (data.num_classes, data.class_names) == (3, ("cat", "dog", "eel"))
    assert data.fetch(range(6))[1].tolist() == [1, 0, 1, 2, 0, 0]


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.array([{}, {}]), "cannot be read: it holds no arrays of numbers or text, but Python objects"),
        (np.zeros((4, 3), complex), "must be floating point, integers or bool, got complex128"),
        (np.array(["a", "b"]), "must be floating point, integers or bool, got <U1"),
        (np.zeros((4, 3), np.int8), "int8.*give the numbers that become -1 and 1"),
        (np.array([[0.0, 1], [np.nan, 0]]), r"x must be finite, but x\[1\] has NaN"),
        (np.zeros((0, 3)), "at least one value"),
        (np.zeros(5), r"must be \(samples, \*event\)"),
        (np.full((3, 2), 2**63, np.uint64), "below 2⁶³"),
    ],
)
def test_other_arrays_are_refused_with_what_they_are(tmp_path, x, message):
    path = tmp_path / "x.npy"
    np.save(path, x, allow_pickle=True)
    with pytest.raises(ValueError, match=message):
        Arrays(str(path)).load()


def test_several_arrays_without_a_key_are_named(tmp_path):
    np.savez(tmp_path / "x.npz", a=PIXELS, b=PIXELS)
    with pytest.raises(ValueError, match=r"key must be one of \['a', 'b'\]"):
        Arrays(str(tmp_path / "x.npz")).load()


def test_masked_entries_are_refused():
    with pytest.raises(TypeError, match=r"x must have no masked entries, got 1: fill them"):
        InMemory(np.ma.masked_invalid([[1.0, np.nan], [0.0, 1.0]]))
    assert as_tensor("x", np.ma.masked_invalid([[1.0, 0.5]])).tolist() == [[1.0, 0.5]]
