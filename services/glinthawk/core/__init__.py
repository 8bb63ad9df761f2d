"""The nouns of Glinthawk as frozen data: no I/O, no clock, no torch, no grpc."""
