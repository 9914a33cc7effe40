"""What several processes share: ranks, the work among them, processes that end with their parent.

Nothing here knows a model or a run.
"""
