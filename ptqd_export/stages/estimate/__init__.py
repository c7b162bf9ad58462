"""Says before a build what it has to do, and how long that will take."""
