"""Facts about the machine and the software: one small function a source."""
