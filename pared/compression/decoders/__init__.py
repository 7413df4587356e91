"""Decoders in model folders, such as Llama: read, run, scored and written layer by layer, in the memory of one."""
