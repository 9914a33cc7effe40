"""Loss and perplexity: by position in whole documents, by prefix length, and in sliding windows."""
