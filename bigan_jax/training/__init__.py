"""From a detector and data to a trained state: step, schedules, loop, devices, divergence."""
