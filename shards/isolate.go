package shards

// Isolate takes the shard out of service because its caller found what it holds
// to be damaged. Nothing in the file is changed; it stays isolated until the set
// is opened again.
func (sh *Shard) Isolate(err error) { sh.isolate(err, true) }
