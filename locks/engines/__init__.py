"""What excludes processes from each other: Linux kernel locks with a fair queue, or `filelock` elsewhere."""
