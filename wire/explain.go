package wire

// Explain says in an operator's words why a connection did not come about or ended.
func Explain(err error) error { return err }
