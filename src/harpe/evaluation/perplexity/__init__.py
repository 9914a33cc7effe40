"""Loss and perplexity: by position in whole documents, by prefix length, and in sliding windows.

Documents arrive as token ids: none are read or tokenised here.
"""
