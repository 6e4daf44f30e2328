"""Pictures of what was found, and the page that shows them."""
