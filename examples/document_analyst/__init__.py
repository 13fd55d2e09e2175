"""An agent that reads a folder of documents and checks what they say against the numbers."""
