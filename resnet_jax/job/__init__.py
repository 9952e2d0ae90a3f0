"""Jobs of several processes: how they find each other, and how all end when one does."""
