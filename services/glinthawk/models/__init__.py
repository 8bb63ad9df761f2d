"""What a model is: where its files are, its shape, its weights and its tokenizer.

Only `weights` imports torch; the gateway uses the rest without it.
"""
