"""Tables of values, built once and written as HTML, Markdown, CSV and for the terminal.

They hold text and the numbers to sort it by. No figures are drawn here, and no file is read.
"""
