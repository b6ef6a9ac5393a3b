"""Several skill vectors into one."""
