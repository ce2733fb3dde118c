"""Pictures: listing, reading, preparing, drawing."""
