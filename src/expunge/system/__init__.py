"""The machine below: files and their manifests, the cache, several processes as one, memory and versions."""
