"""What Ray has under `ray.util`, by the same names."""
