"""Long-context suites whose samples are made here, from a seed and without files: a module a suite, each after a
published benchmark whose data it neither contains nor needs. `ruler2` alone is a published benchmark itself, with
samples of its own making and with data.

A suite's module has its tasks (`TASKS`) and what there is to say of it (`SUITE`). A task draws a sample whose context
can be of any size, tells what a right answer is, how many tokens it may take, how an answer is scored, and what a
guesser would score.
"""
