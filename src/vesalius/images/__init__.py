"""Read and write medical images: one `Image`, one file per format family."""

from vesalius.images.image import Image

__all__ = ["Image"]
