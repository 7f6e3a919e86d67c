"""Episodes on disk, the windows over them, and their way to the device."""
