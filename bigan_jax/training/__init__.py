"""Training of a detector on data: step, schedules, loop, devices, divergence."""
