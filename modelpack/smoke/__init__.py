"""Does a model behave? A few prompts through llama.cpp, checks on the answers, and a report."""
