"""What comes of a vendor's faults: each of sixteen, for whole answers and streams, with a second vendor and without one."""
