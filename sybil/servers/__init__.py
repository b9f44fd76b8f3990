"""HTTP servers, and functions that may never return: their answers are bounded in time and in size."""
