package shards

// Full reports whether the disk was found full and has no room for the reserve yet: Update is refused, UpdateReserved is
// let through.
func (s *Set) Full() bool { return s.reserve.short.Load() }
