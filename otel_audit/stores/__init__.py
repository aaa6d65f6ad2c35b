"""Reading what others keep: a collector's archive, logs of lines."""
