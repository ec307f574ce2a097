"""Arrays, backends, memory and time: everything that knows about libraries and devices."""
