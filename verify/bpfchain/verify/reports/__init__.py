"""Reports: a proof's result as text, JSON, JUnit XML, lcov coverage and one HTML page."""
