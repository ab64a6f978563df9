"""What the papers say: their numbers and their claims, as data with its place."""
