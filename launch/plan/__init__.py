"""What a run will need, take and cost, before it is queued."""
