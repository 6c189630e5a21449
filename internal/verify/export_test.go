package verify

import "context"

// FreshetApart is [Freshet], but what it answers about accounts is not of one moment: it reads each for itself, by
// one call.
func FreshetApart(ctx context.Context, at Endpoints) (Subject, error) {
	s, err := Freshet(ctx, at)
	if f, ok := s.(*freshet); ok {
		f.joint.apart = true
	}
	return s, err
}
