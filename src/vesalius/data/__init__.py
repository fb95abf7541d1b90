"""The table of images (one row per image), the datasets' layouts, splits by patient, sampling, and phantoms."""
