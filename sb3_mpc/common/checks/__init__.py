"""Bad input is met here, with one sentence that names the culprit and the fix."""
