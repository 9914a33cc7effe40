"""What several processes share: ranks, the work among them, processes that end with their parent. Knows no model and no
run."""
