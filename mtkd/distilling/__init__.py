"""`mtkd distill`: own photographs and a strong network in, an own student out."""
