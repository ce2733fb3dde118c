"""What a model costs on this machine: times of calls of several kinds, memory, and the start of a process. Draws nothing, prints nothing."""
