"""A demonstration: one application, with and without the package, while its server fails."""
