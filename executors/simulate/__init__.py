"""The simulator: a plan replayed event by event in virtual time, with its trace and its Gantt chart."""
