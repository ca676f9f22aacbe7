"""``demo --workers``: the batch on several processes, one of which is killed."""
