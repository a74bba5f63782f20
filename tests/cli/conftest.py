from tests.command import checkpoint, movie, photo, run_foveal

__all__ = ["checkpoint", "movie", "photo", "run_foveal"]
