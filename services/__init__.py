"""The seven services of llmmesh, what they share (`common`) and the command line (`cli`)."""
