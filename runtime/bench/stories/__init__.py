"""The stories of two reports from production, played by the legacy model and by this project side by side."""
