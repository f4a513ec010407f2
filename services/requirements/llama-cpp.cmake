# Read by llama-cpp-python's build (see the Makefile): leaves out llama.cpp's "common" library, which
# its Python bindings never load and which takes longer to compile than all the rest.
# The package forces the cache entry on; a plain variable of the same name comes before it.
set(LLAMA_BUILD_COMMON OFF)
