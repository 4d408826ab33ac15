"""Programs that measure the speed and the error of attribution methods."""
