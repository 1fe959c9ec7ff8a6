"""What openedm does where files, disks, processes and users fail, measured: `python -m benchmarks.faults`."""
