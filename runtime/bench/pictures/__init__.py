"""Pictures of a result, and the page with all of them. Needs matplotlib, which the extra `bench` installs."""
