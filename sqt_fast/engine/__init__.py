"""Who runs where: processes, threads and memory between the list of videos and their results."""
