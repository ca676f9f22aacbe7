"""Small services that cancel refunds, each started by a test with its real server."""
