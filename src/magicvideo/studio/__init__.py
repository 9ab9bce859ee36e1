"""The studio: jobs, the `/v1/videos` API, and the web page, on one table of jobs."""
