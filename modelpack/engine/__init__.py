"""llama.cpp in a child process: a model is loaded, asked and killed without harm to this one."""
